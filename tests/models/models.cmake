# Model tests drive ModelRunner through verify's Probe, which is compiled in so that they need no more than the runner.
set(TM_MODEL_TEST_SUPPORT
    ${CMAKE_CURRENT_LIST_DIR}/model_test_util.cc ${CMAKE_CURRENT_LIST_DIR}/naive_backend.cc
    ${CMAKE_SOURCE_DIR}/src/verify/probe.cc)
tm_test(tiny_golden_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/tiny_golden_test.cc ${TM_MODEL_TEST_SUPPORT}
        LIBS tm_runner tm_checkpoint)
tm_test(random_shapes_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/random_shapes_test.cc ${TM_MODEL_TEST_SUPPORT}
        LIBS tm_runner tm_checkpoint)
tm_test(rope_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/rope_test.cc ${CMAKE_CURRENT_LIST_DIR}/naive_backend.cc
        LIBS tm_nn)
tm_test(determinism_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/determinism_test.cc
        ${CMAKE_CURRENT_LIST_DIR}/quantized_checkpoint.cc ${TM_MODEL_TEST_SUPPORT} LIBS tm_runner tm_checkpoint
        TIMEOUT 1800)
