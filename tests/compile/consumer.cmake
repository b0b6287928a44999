# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Compiles and links a program, and runs it.
#   -D COMPILE=…   the compiler and its options, as a list      -D SOURCE=…  -D PROGRAM=…
#   -D RUN=…       TRUE, or what runs it: an emulator; else it is not run
#   -D PROCESSORS=…   processors that the emulator is to run it on, one after the other
#   -D SCRIPT=…    what looks through its instructions, see disassembly.cmake      -D OBJDUMP=…  -D AWK=…
#   -D REFUSED=…   instead: it must be refused in this sentence, and nothing may be said besides
execute_process(COMMAND ${COMPILE} "${SOURCE}" -o "${PROGRAM}" RESULT_VARIABLE result ERROR_VARIABLE output)
if(REFUSED)
  string(REGEX MATCHALL "[^\n]*error[ :][^\n]*" errors "${output}")
  list(FILTER errors EXCLUDE REGEX "^ *[0-9]* *\\|")
  list(LENGTH errors count)
  list(GET errors 0 first)
  # The second one is that of the file that is not there, where the compiler stops.
  if(result EQUAL 0 OR NOT first MATCHES "${REFUSED}" OR count GREATER 2)
    message(FATAL_ERROR "Not refused, or not in that sentence alone:\n${output}")
  endif()
  return()
endif()
if(NOT result EQUAL 0 OR NOT output STREQUAL "")
  message(FATAL_ERROR "It does not compile, or not without warnings:\n${output}")
endif()
if(SCRIPT)
  set(OBJECTS "${PROGRAM}")
  set(EXPECT clean)
  include("${CMAKE_CURRENT_LIST_DIR}/disassembly.cmake")
endif()
if(RUN STREQUAL "TRUE")
  execute_process(COMMAND "${PROGRAM}" COMMAND_ERROR_IS_FATAL ANY)
elseif(RUN AND NOT RUN STREQUAL "FALSE")
  set(ENV{WINEPREFIX} "${PROGRAM}.wine")  # not in the home folder
  set(ENV{WINEDEBUG} -all)
  foreach(processor IN LISTS PROCESSORS)
    execute_process(COMMAND ${RUN} -cpu ${processor} "${PROGRAM}" COMMAND_ERROR_IS_FATAL ANY)
  endforeach()
  if(NOT PROCESSORS)
    execute_process(COMMAND ${RUN} "${PROGRAM}" COMMAND_ERROR_IS_FATAL ANY)
  endif()
else()
  message("Compiled and linked, not run")
endif()
