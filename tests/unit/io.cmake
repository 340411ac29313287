mpinfer_test(io_unit
  SOURCES support/main.cpp unit/io/jsonl_test.cpp unit/io/field_scanner_test.cpp unit/io/index_test.cpp
          unit/io/partition_test.cpp unit/io/journal_test.cpp unit/io/output_test.cpp unit/io/gather_test.cpp
          unit/io/run_lock_test.cpp unit/io/run_record_test.cpp
  LINKS mpinfer_io)
