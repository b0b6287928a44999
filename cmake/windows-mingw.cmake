# SPDX-License-Identifier: Apache-2.0
# Cross-builds for 64-bit Windows by MinGW-w64, as Debian has it (g++-mingw-w64-x86-64-posix), and runs programs by Wine (wine64).
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_C_COMPILER x86_64-w64-mingw32-gcc-posix)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_RC_COMPILER x86_64-w64-mingw32-windres)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)  # so that programs run where there are no libraries of the compiler's
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
find_program(GQA_WINE NAMES wine64 wine PATHS /usr/lib/wine)  # Debian's wine64 is in no PATH
if(GQA_WINE)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${GQA_WINE}")
endif()
