# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Compiles one program that must not compile, and looks at the reason given.
#   -D COMPILE=…   the compiler and its options, as a list
#   -D SOURCE=…    the program
#   -D WRONG=…     what makes it wrong: -DGQA_WRONG, or an option of the compiler
# The program says what must stand in the compiler's output, in lines of the form
#   // expected: a regular expression
# and must compile without WRONG, so that the refusal is for that alone.
file(STRINGS "${SOURCE}" expectations REGEX "^// expected: ")
if(NOT expectations)
  message(FATAL_ERROR "${SOURCE} says nothing of what is expected")
endif()

execute_process(COMMAND ${COMPILE} -fsyntax-only "${SOURCE}" RESULT_VARIABLE result ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "The program must compile without ${WRONG}:\n${output}")
endif()

execute_process(COMMAND ${COMPILE} ${WRONG} -fsyntax-only "${SOURCE}" RESULT_VARIABLE result ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "It compiled with ${WRONG}")
endif()
string(REPLACE "\n" " " output_line "${output}")
foreach(expectation IN LISTS expectations)
  string(REPLACE "// expected: " "" expectation "${expectation}")
  if(NOT output_line MATCHES "${expectation}")
    message(FATAL_ERROR "Refused, but nothing in the output matches\n  ${expectation}\nOutput:\n${output}")
  endif()
endforeach()
