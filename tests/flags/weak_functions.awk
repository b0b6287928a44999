# SPDX-License-Identifier: Apache-2.0
# Reads `objdump --disassemble --no-show-raw-insn` and writes the instructions of the functions that the file `only` lists by their
# names, for an assembler that knows a processor's baseline alone: it names what is not in it. Jumps, calls and addresses are left out.
#   -v only=FILE

BEGIN {
  while ((getline line < only) > 0) listed[line] = 1
}

/^[0-9a-f]+ <.*>:$/ {
  symbol = substr($0, index($0, "<") + 1)
  symbol = substr(symbol, 1, length(symbol) - 2)
  wanted = symbol in listed
  if (wanted) {
    ++functions
    line_number = 0
    print ".section .text." functions
  }
  next
}

wanted && /^ +[0-9a-f]+:\t/ {
  split($0, field, "\t")
  instruction = field[2] (field[3] != "" ? " " field[3] : "")
  sub(/[ \t]*(# |\/\/ ).*$/, "", instruction)  # objdump's remarks; an AArch64 constant begins with # too
  if (instruction ~ /<|\(bad\)|^(nop|data16|cs|endbr|bti|pac|aut|udf|notrack|bnd|rep(z|nz)? ret|\.)/ || instruction == "") next
  print "# 1 \"" symbol "\""
  print instruction
}

END { if (!functions) print "# nothing" }
