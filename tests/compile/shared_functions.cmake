# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Two units with different -m flags that define the same weak function share it: the linker keeps either one. What the library
# defines carries the tag of the unit's flags in its name; where a name cannot (the destructor of an exception type), the wider
# unit's function must at least hold no wide instruction. Of the standard library's own templates this is only reported: they
# are shared by any two units that use them.
#   -D NM=… -D OBJDUMP=… -D AWK=… -D SCRIPT=…/leaks.awk
#   -D PLAIN=… -D WIDE=…   the object files      -D LIST=…   a file to write      -D EXPECT=clean or leak
function(functions_of object result)
  execute_process(COMMAND ${NM} --defined-only --format=posix "${object}" OUTPUT_VARIABLE output RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${NM} ${object} failed")
  endif()
  string(REGEX MATCHALL "[^\n ]+ [TWi] [^\n]*" lines "${output}")
  list(TRANSFORM lines REPLACE " .*$" "")
  if(NOT lines)
    message(FATAL_ERROR "${object} defines no function")
  endif()
  set(${result} "${lines}" PARENT_SCOPE)
endfunction()

functions_of("${PLAIN}" plain)
functions_of("${WIDE}" wide)
set(shared)
foreach(symbol IN LISTS plain)
  if(symbol IN_LIST wide AND symbol MATCHES "3gqa")
    list(APPEND shared "${symbol}")
  elseif(symbol IN_LIST wide)
    message("in both, the standard library's: ${symbol}")
  endif()
endforeach()
list(JOIN shared "\n" lines)
message("in both, the library's:\n${lines}")
file(WRITE "${LIST}" "${lines}\n")

execute_process(
  COMMAND ${OBJDUMP} --disassemble --no-show-raw-insn "${WIDE}"
  COMMAND ${AWK} -v "only=${LIST}" -f "${SCRIPT}"
  RESULTS_VARIABLE results OUTPUT_VARIABLE output)
message("${output}")
list(GET results 1 awk_result)
if(EXPECT STREQUAL "clean" AND NOT awk_result EQUAL 0)
  message(FATAL_ERROR "A function that a plain unit may get from ${WIDE} holds wide instructions")
elseif(EXPECT STREQUAL "leak" AND NOT awk_result EQUAL 1)
  message(FATAL_ERROR "The leak that was planted here was not found")
endif()
