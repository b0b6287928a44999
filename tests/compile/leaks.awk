# SPDX-License-Identifier: Apache-2.0
# Reads `objdump --disassemble --demangle --no-show-raw-insn` of units that were compiled without -m flags and reports every
# instruction beyond x86-64's baseline that stands outside the paths' namespaces: such a function may run before dispatch,
# on a processor that has no such instruction.
# With -v only=FILE it looks at the functions that FILE lists, by their mangled names, and at no others.

BEGIN {
  if (only != "") while ((getline line < only) > 0) listed[line] = 1
}

# The qualified name of a function, without template arguments and parameters: those may well name a path.
function qualified(name,   result, depth, i, c) {
  sub(/ \[clone .*$/, "", name)
  gsub(/operator(<<=?|<=>|<=?|>>=?|>=?|->\*?|\(\))/, "operator", name)
  gsub(/\(anonymous namespace\)/, "anonymous", name)
  result = ""
  depth = 0
  for (i = 1; i <= length(name); ++i) {
    c = substr(name, i, 1)
    if (c == "<" || c == "(" || c == "{" || c == "[") ++depth
    else if (c == ">" || c == ")" || c == "}" || c == "]") --depth
    else if (depth == 0) result = result c
  }
  return result
}

/^[0-9a-f]+ <.*>:$/ {
  symbol = substr($0, index($0, "<") + 1)
  symbol = substr(symbol, 1, length(symbol) - 2)
  looked_at = only == "" || symbol in listed
  in_path = only == "" && qualified(symbol) ~ /(^|[ :*&])gqa::detail::(abi_[a-z0-9_]+::)?(avx2|avx512|avx512bf16|avx512vnni|amx)::/
  ++symbols
  path_symbols += in_path
  next
}

looked_at && /^ +[0-9a-f]+:\t/ {
  split($0, field, "\t")
  instruction = field[2]
  mnemonic = instruction
  sub(/^((bnd|lock|rep|repz|repnz|notrack|data16|cs|ds|es|ss) )+/, "", mnemonic)
  sub(/ .*$/, "", mnemonic)
  ++instructions
  wide = instruction ~ /[%{](ymm|zmm|k[0-7]|tmm)/ ||                                           # wide registers
         (mnemonic ~ /^v/ && mnemonic !~ /^(verr|verw|vmcall)$/) ||                            # VEX and EVEX
         mnemonic ~ /^(tdp|tile|ldtilecfg|sttilecfg)/ ||                                       # AMX
         mnemonic ~ /^(andn|bextr|blsi|blsmsk|blsr|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx)[lq]?$/ ||  # VEX, scalar
         mnemonic ~ /^(popcnt|lzcnt|movbe|crc32)/ ||
         mnemonic ~ /^(haddp|hsubp|addsubp|lddqu|movddup|movs[hl]dup|pshufb|palignr|pabs|phadd|pmulhrsw|psign)/ ||  # SSE3
         mnemonic ~ /^(pblend|blend|dpp[sd]|extractps|insertps|pextr[bdq]|pinsr[bdq]|pmov[sz]x|pm(ax|in)(s[bd]|u[wd])|pmulld|pmuldq|ptest|round[ps][sd]|pcmp(eqq|gtq|[ei]str)|packusdw|mpsadbw)/  # SSE4
  if (!wide) next
  if (in_path) {
    ++path_instructions
  } else {
    ++leaks
    if (!reported[symbol]++) print "outside the paths' namespaces: " symbol "\n    " instruction
  }
}

END {
  printf "%d symbols, %d of them a path's; %d instructions, %d wide ones in paths, %d outside\n",
         symbols, path_symbols, instructions, path_instructions, leaks
  if (leaks) exit 1
  if (only == "" && !path_instructions) exit 2  # nothing was looked at
}
