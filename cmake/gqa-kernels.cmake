# SPDX-License-Identifier: Apache-2.0
# gqa_add_kernels(<name> [CODECS <codec>...])
#
# Makes the static library <name>, which holds the kernels of every path and element type, and of these codecs of the library (Int8, Q8_0, …),
# at -O2 whatever the build type is. Units of a target that links <name> call those and compile none themselves, which saves most of
# their compile time, and makes a debug build nearly as fast as a release build. It brings gqa::gqa along.
#
# Its flags are those of CMAKE_CXX_FLAGS and add_compile_options before the call, and -O2; the units that use it may have others.
set_property(GLOBAL PROPERTY GQA_KERNELS_SOURCE "${CMAKE_CURRENT_LIST_DIR}/kernels.cpp")

function(gqa_add_kernels name)
  cmake_parse_arguments(PARSE_ARGV 1 kernels "" "" "CODECS")
  if(kernels_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "gqa_add_kernels(<name> [CODECS <codec>...]) was given ${kernels_UNPARSED_ARGUMENTS}")
  endif()
  get_property(source GLOBAL PROPERTY GQA_KERNELS_SOURCE)
  add_library(${name} STATIC "${source}")
  target_link_libraries(${name} PUBLIC gqa::gqa)
  target_compile_definitions(${name} INTERFACE GQA_COMPILED_KERNELS)
  target_compile_options(${name} PRIVATE -O2)
  if(kernels_CODECS)
    list(TRANSFORM kernels_CODECS PREPEND "gqa::")
    list(JOIN kernels_CODECS "," codecs)
    target_compile_definitions(${name} PRIVATE "GQA_COMPILED_CACHES=gqa::CacheOf<float,gqa::bf16,gqa::f16,${codecs}>")
  endif()
  # In a precompiled header the library would come before the definition that asks for its kernels. A shared library may want them, too.
  set_target_properties(${name} PROPERTIES UNITY_BUILD OFF DISABLE_PRECOMPILE_HEADERS ON POSITION_INDEPENDENT_CODE ON)
endfunction()
