# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Builds and runs consumers with the oldest CMake that they may have: the library as part of their build, and as installed.
#   -D OLD=… that cmake  -D CXX=…  -D GQA_SOURCE=…  -D PREFIX=…  -D BUILD=…  -D GENERATOR=…  -D VERSION=… of the library
execute_process(COMMAND "${OLD}" --version OUTPUT_VARIABLE version COMMAND_ERROR_IS_FATAL ANY)
if(NOT version MATCHES "version 3\\.16\\.")
  message(FATAL_ERROR "${OLD} is not a CMake 3.16: ${version}")
endif()
file(REMOVE_RECURSE "${BUILD}")
foreach(consumer IN ITEMS add_subdirectory find_package kernels)
  execute_process(
    COMMAND "${OLD}" -S "${CMAKE_CURRENT_LIST_DIR}/${consumer}" -B "${BUILD}/${consumer}" -G "${GENERATOR}" "-DCMAKE_CXX_COMPILER=${CXX}"
            "-DGQA_SOURCE=${GQA_SOURCE}" "-DCMAKE_PREFIX_PATH=${PREFIX}" "-DGQA_EXPECTED_VERSION=${VERSION}" COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND "${OLD}" --build "${BUILD}/${consumer}" COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND "${BUILD}/${consumer}/consumer" COMMAND_ERROR_IS_FATAL ANY)
endforeach()
