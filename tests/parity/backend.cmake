mpinfer_test(parity_backend
  SOURCES support/main.cpp parity/backend_fixture.cpp parity/backend_attention.cpp parity/backend_gemm.cpp
    parity/backend_rows.cpp parity/backend_sample.cpp
  LINKS mpinfer_backend)
