# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Links a unit with newer flags and a plain one, the newer first, so that it is the one whose weak functions both take. No weak function
# that other units may share holds an instruction that a baseline processor has not, and the plain unit's results are those of a
# program without the other one, on such a processor.
#   -D COMPILE=…    the compiler and the plain flags, as a list     -D NEWER=…     the flags of the other unit, as a list
#   -D LINK=…       flags to link with, as a list                   -D SOURCE=…    pair.cpp, or another with its function
#   -D DIR=…        a folder to write to                            -D EXPECT=…    clean; or leak, where one is planted
#   -D RUN=…        what runs a program on a baseline processor, as a list; empty: this one
#   -D NM=… -D OBJDUMP=… -D AWK=…                                   -D ASSEMBLE=…  an assembler that knows the baseline, as a list; or empty
file(MAKE_DIRECTORY "${DIR}")

function(run)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${DIR}" RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\n${result}\n${output}${errors}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run(${COMPILE} -DGQA_UNIT=unit_plain -c "${SOURCE}" -o "${DIR}/plain.o")
run(${COMPILE} -DGQA_UNIT=unit_newer -c "${SOURCE}" -o "${DIR}/as_plain.o")
run(${COMPILE} ${NEWER} -DGQA_UNIT=unit_newer -c "${SOURCE}" -o "${DIR}/newer.o")
run(${COMPILE} -c "${CMAKE_CURRENT_LIST_DIR}/pair_main.cpp" -o "${DIR}/main.o")
run(${COMPILE} "${DIR}/as_plain.o" "${DIR}/plain.o" "${DIR}/main.o" -o "${DIR}/without")
run(${COMPILE} ${LINK} "${DIR}/newer.o" "${DIR}/plain.o" "${DIR}/main.o" -o "${DIR}/with")

if(EXPECT STREQUAL "clean")
  run(${RUN} "${DIR}/without")
  set(expected "${output}")
  run(${RUN} "${DIR}/with")
  message("${output}")
endif()
if(NOT EXPECT STREQUAL "leak" AND (NOT output STREQUAL expected OR output STREQUAL ""))
  message(FATAL_ERROR "Beside the other unit the plain one computes something else than ${expected}")
endif()
if(NOT ASSEMBLE)
  return()
endif()

# Functions under this tag are the newer unit's own.
file(WRITE "${DIR}/tag.cpp" "#include \"gqa/detail/abi_tag.hpp\"\nGQA_ABI\n")
run(${COMPILE} ${NEWER} -E -P "${DIR}/tag.cpp")
string(REGEX MATCH "abi_[a-z0-9_]+" tag "${output}")
if(NOT tag)
  message(FATAL_ERROR "No tag in ${output}")
endif()
run(${NM} --defined-only --format=posix "${DIR}/newer.o")
string(REGEX MATCHALL "[^\n ]+ [WVui] [^\n]*" weak "${output}")
list(TRANSFORM weak REPLACE " .*$" "")
list(LENGTH weak all)
list(FILTER weak EXCLUDE REGEX "${tag}")
list(LENGTH weak shared)
message("${tag}: ${all} weak symbols, ${shared} of them without the tag")
list(JOIN weak "\n" lines)
file(WRITE "${DIR}/weak.txt" "${lines}\n")

run(${OBJDUMP} --disassemble --no-show-raw-insn "${DIR}/newer.o")
file(WRITE "${DIR}/newer.txt" "${output}")
run(${AWK} -v "only=${DIR}/weak.txt" -f "${CMAKE_CURRENT_LIST_DIR}/weak_functions.awk" "${DIR}/newer.txt")
file(WRITE "${DIR}/weak.s" "${output}")
execute_process(COMMAND ${ASSEMBLE} "${DIR}/weak.s" -o "${DIR}/weak.o" RESULT_VARIABLE result ERROR_VARIABLE errors)
if(EXPECT STREQUAL "leak")
  if(result EQUAL 0)
    message(FATAL_ERROR "The leak that was planted here was not found")
  endif()
  message("Found, as it should be:\n${errors}")
elseif(NOT result EQUAL 0)
  message(FATAL_ERROR "Weak functions that other units may share hold newer instructions:\n${errors}")
endif()
