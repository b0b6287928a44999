// SPDX-License-Identifier: Apache-2.0
// Tile instructions in software for the programs of calls.cpp, compiled with plain flags: it is no part of what is tested here.
#define GQA_DETAIL_EMULATED_AMX 1
#include "../support/amx_emulator.hpp"
