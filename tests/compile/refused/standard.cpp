// SPDX-License-Identifier: Apache-2.0
// To be compiled for an older language. That sentence comes first, and the compiler stops there.
// expected: ^[^:]*In file included from .*error: (#error )?"gqa needs C\+\+20: compile this unit with -std=c\+\+20 or newer".*see_the_error_above'?( file not found|: No such file)
#include "gqa/gqa.hpp"

int main() { return gqa::path_name(gqa::Path::portable) == nullptr; }
