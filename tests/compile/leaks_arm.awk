# SPDX-License-Identifier: Apache-2.0
# Reads `objdump --disassemble --demangle --no-show-raw-insn` of a program for AArch64 that was compiled without -m flags and reports every
# product of bytes or of bf16 that stands outside the namespaces whose code runs only where the processor has it.

/^[0-9a-f]+ <.*>:$/ {
  symbol = substr($0, index($0, "<") + 1)
  sub(/\(.*/, "", symbol)
  in_path = symbol ~ /(^|[ :*&])gqa::detail::(abi_[a-z0-9_]+::)?neon_?(dot|i8mm|bf16)::/
  next
}

/^ +[0-9a-f]+:\t/ {
  split($0, field, "\t")
  if (field[2] !~ /^(([su]|us|su)dot|([su]|us)mmla|bf(dot|mmla|mlal[bt]|cvt(n2?)?))$/) next
  if (in_path) {
    ++path_instructions
  } else {
    ++leaks
    if (!reported[symbol]++) print "outside the paths' namespaces: " symbol "\n    " field[2] " " field[3]
  }
}

END {
  printf "%d products in paths, %d outside\n", path_instructions, leaks
  if (leaks) exit 1
  if (!path_instructions) exit 2  # nothing was looked at
}
