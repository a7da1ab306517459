# cmake -DAR= -DSTRIP= -DOUTPUT= -DARCHIVES="a;b" -P: one archive of several, without debug information.
#
# What the tools say is shown where they fail only: where LLVM's linker plugin is installed, they tell of every object of
# a newer LLVM (Rust's) that it cannot be read as LLVM code, which it need not be.
file(REMOVE ${OUTPUT})
set(script "create ${OUTPUT}\n")
foreach(archive ${ARCHIVES})
  string(APPEND script "addlib ${archive}\n")
endforeach()
file(WRITE ${OUTPUT}.mri "${script}save\nend\n")
execute_process(COMMAND ${AR} -M INPUT_FILE ${OUTPUT}.mri RESULT_VARIABLE result ERROR_VARIABLE said OUTPUT_VARIABLE said)
if(result EQUAL 0)
  execute_process(COMMAND ${STRIP} --strip-debug ${OUTPUT} RESULT_VARIABLE result ERROR_VARIABLE said OUTPUT_VARIABLE said)
endif()
if(NOT result EQUAL 0)
  file(REMOVE ${OUTPUT})
  message(FATAL_ERROR "${OUTPUT} could not be made:\n${said}")
endif()
