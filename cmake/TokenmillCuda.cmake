# The CUDA toolkit: language and architectures. CMAKE_CUDA_COMPILER or CUDACXX names the compiler; else
# tools/cuda_toolkit.py finds or fetches one.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  execute_process(COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tools/cuda_toolkit.py
                  OUTPUT_VARIABLE _nvcc OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE _nvcc_result)
  if(NOT _nvcc_result EQUAL 0)
    message(FATAL_ERROR "No CUDA compiler: see above, or configure with -DTOKENMILL_CUDA=OFF")
  endif()
  set(CMAKE_CUDA_COMPILER ${_nvcc} CACHE FILEPATH "CUDA compiler")
endif()
# Machine code for the cards in use, and PTX from which the driver makes code for later ones. nvcc before 12.8 does not
# know sm_100.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(_choose_architectures ON)
  set(CMAKE_CUDA_ARCHITECTURES 80-real)  # for the compiler check
endif()
enable_language(CUDA)
if(_choose_architectures)
  set(_list 80-real 90a-real 90-virtual)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    set(_list 80-real 90a-real 100-real 90-virtual 100-virtual)
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${_list} CACHE STRING "CUDA architectures" FORCE)
endif()
# CMake may be older than the compiler and not know its flag.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_FLAGS_RELEASE "-O2")
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
if(CCACHE_PROGRAM)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
# FindCUDAToolkit of CMake before 3.27 asks for a library that CUDA 13 no longer has.
if(NOT TARGET CUDA::nvToolsExt)
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
endif()
find_package(CUDAToolkit REQUIRED)
