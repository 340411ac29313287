mpinfer_test(unit_engine SOURCES support/main.cpp unit/engine/prefix_groups_test.cpp LINKS mpinfer_engine)
