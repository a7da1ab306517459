# ops/ holds the list of operations; ops/cpu/ its CPU implementation.
file(GLOB TM_OPS_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cc ${CMAKE_CURRENT_LIST_DIR}/cpu/*.cc)
tm_module(ops DEPS base batch SOURCES ${TM_OPS_SOURCES})
