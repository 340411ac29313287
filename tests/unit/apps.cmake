mpinfer_test(unit_apps
  SOURCES unit/apps/option_values_test.cpp unit/apps/options_test.cpp support/main.cpp
  LINKS mpinfer_options)
