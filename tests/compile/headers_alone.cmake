# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Compiles every header alone, included twice.
#   -D COMPILE=…   the compiler and its options, as a list      -D HEADERS=…   the headers, as a list
set(failures 0)
foreach(header IN LISTS HEADERS)
  execute_process(COMMAND ${COMPILE} -fsyntax-only -include "${header}" -include "${header}" -x c++ /dev/null
                  RESULT_VARIABLE result ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    math(EXPR failures "${failures} + 1")
    message("${header} does not compile alone:\n${output}")
  endif()
endforeach()
list(LENGTH HEADERS count)
if(failures OR NOT count)
  message(FATAL_ERROR "${failures} of ${count} headers failed")
endif()
