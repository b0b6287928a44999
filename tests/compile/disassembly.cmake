# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Looks for instructions that leaked out of the paths (leaks.awk) in object files.
#   -D OBJDUMP=… -D AWK=… -D SCRIPT=…/leaks.awk
#   -D OBJECTS=…   the object files, as a list      -D EXPECT=clean or leak
foreach(object IN LISTS OBJECTS)
  execute_process(
    COMMAND ${OBJDUMP} --disassemble --demangle --no-show-raw-insn "${object}"
    COMMAND ${AWK} -f "${SCRIPT}"
    RESULTS_VARIABLE results OUTPUT_VARIABLE output)
  message("${object}\n${output}")
  list(GET results 0 objdump_result)
  list(GET results 1 awk_result)
  if(NOT objdump_result EQUAL 0)
    message(FATAL_ERROR "${OBJDUMP} failed")
  elseif(EXPECT STREQUAL "clean" AND NOT awk_result EQUAL 0)
    message(FATAL_ERROR "Wide instructions outside the paths' namespaces")
  elseif(EXPECT STREQUAL "leak" AND NOT awk_result EQUAL 1)
    message(FATAL_ERROR "The leak that was planted here was not found")
  endif()
endforeach()
