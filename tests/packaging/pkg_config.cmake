# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Builds and runs the consumer with nothing but a compiler and what pkg-config says.
#   -D PKG_CONFIG=…  -D PC_DIR=…  -D VERSION=…  -D CXX=…  -D SOURCE=…  -D PROGRAM=…
set(ENV{PKG_CONFIG_PATH} "${PC_DIR}")
execute_process(COMMAND ${PKG_CONFIG} --modversion gqa OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
if(NOT found VERSION_EQUAL VERSION)
  message(FATAL_ERROR "pkg-config says version ${found}, not ${VERSION}")
endif()
execute_process(COMMAND ${PKG_CONFIG} --cflags gqa OUTPUT_VARIABLE cflags OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${PKG_CONFIG} --libs gqa OUTPUT_VARIABLE libs OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
if(NOT libs STREQUAL "")
  message(FATAL_ERROR "A header-only library has nothing to link, but pkg-config says ${libs}")
endif()
separate_arguments(cflags UNIX_COMMAND "${cflags}")
execute_process(COMMAND ${CXX} -std=c++20 ${cflags} "${SOURCE}" -o "${PROGRAM}" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${PROGRAM}" COMMAND_ERROR_IS_FATAL ANY)
