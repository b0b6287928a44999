# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Runs PROGRAMS (a list) with ARGUMENTS and writes RESULT: one JSON object with what each program measured, by its name, as
# Google Benchmark writes it.
separate_arguments(ARGUMENTS UNIX_COMMAND "${ARGUMENTS}")
set(members "")
set(separator "")
foreach(program IN LISTS PROGRAMS)
  cmake_path(GET program FILENAME name)
  set(part "${RESULT}.${name}")
  execute_process(COMMAND "${program}" ${ARGUMENTS} "--benchmark_out=${part}" --benchmark_out_format=json
                  COMMAND_ERROR_IS_FATAL ANY)
  if(EXISTS "${part}") # a filter may leave a program nothing to do
    file(READ "${part}" measured)
    file(REMOVE "${part}")
    string(STRIP "${measured}" measured)
    if(measured)
      string(APPEND members "${separator}\"${name}\": ${measured}")
      set(separator ",\n")
    endif()
  endif()
endforeach()
file(WRITE "${RESULT}" "{\n${members}\n}\n")
message("All results: ${RESULT}")
