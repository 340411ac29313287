mpinfer_test(job_unit
  SOURCES support/main.cpp unit/job/request_builder_test.cpp unit/job/openai_rows_test.cpp unit/job/result_format_test.cpp
          unit/job/report_test.cpp unit/job/stop_strings_test.cpp unit/job/feeder_test.cpp unit/job/structured_fields_test.cpp
  LINKS mpinfer_job)
target_compile_definitions(job_unit PRIVATE MPINFER_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
