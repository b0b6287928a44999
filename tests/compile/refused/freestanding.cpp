// SPDX-License-Identifier: Apache-2.0
// Units without the whole standard library are refused in one sentence. Here the wrong line is an option of the compiler.
// expected: gqa needs the whole standard library: compile this unit without -ffreestanding
#include "gqa/tensor_view.hpp"

int main() { return 0; }
