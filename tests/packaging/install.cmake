# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.23)
# Installs BUILD into a fresh PREFIX and looks for what must be there, and for what must not.
file(REMOVE_RECURSE "${PREFIX}")
execute_process(COMMAND ${CMAKE_COMMAND} --install "${BUILD}" --prefix "${PREFIX}" COMMAND_ERROR_IS_FATAL ANY)

file(GLOB_RECURSE source_headers RELATIVE "${CMAKE_CURRENT_LIST_DIR}/../../include"
     "${CMAKE_CURRENT_LIST_DIR}/../../include/gqa/*")
file(GLOB_RECURSE installed_headers RELATIVE "${PREFIX}/include" "${PREFIX}/include/*")
if(NOT source_headers STREQUAL installed_headers OR NOT "gqa/gqa.hpp" IN_LIST installed_headers)
  message(FATAL_ERROR "Installed headers:\n${installed_headers}\nHeaders of the source tree:\n${source_headers}")
endif()

file(GLOB_RECURSE installed RELATIVE "${PREFIX}" "${PREFIX}/*")
foreach(file IN LISTS installed)
  if(NOT file MATCHES "^(include/gqa/|share/cmake/gqa/|share/pkgconfig/gqa\\.pc$|share/doc/gqa/LICENSE$)")
    message(FATAL_ERROR "${file} does not belong into an installation")
  endif()
endforeach()
file(READ "${PREFIX}/share/cmake/gqa/gqa-targets.cmake" targets)
if(targets MATCHES "${BUILD}|-Werror")
  message(FATAL_ERROR "The installed targets carry a trace of this build:\n${targets}")
endif()
