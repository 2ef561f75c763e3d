#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Compiles the programs with other layouts of almost every map, as an earlier
# release may have had, for the tests of succession. Run by go generate in bpf/.
set -eu
out=testdata/otherlayout
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r c "$work/c"

# field FILE STRUCT FIELD inserts a field at the beginning of a struct.
field() {
	sed -i "s/^struct $2 {\$/struct $2 {\n\t$3;/" "$work/c/include/$1"
	grep -qF "	$3;" "$work/c/include/$1"
}
field types.h frontend '__u32 earlier[2]'
field types.h route '__u32 earlier'
field types.h config '__u64 earlier'
field types_family.h 'FAM(backend)' '__u32 earlier'
field types_family.h 'FAM(sock_peer)' '__u64 earlier'
field types_family.h 'FAM(ct_entry)' '__u64 earlier[2]'

mkdir -p "$out"
rm -f "$out"/*.o.gz
for source in "$work"/c/*.c; do
	name=$(basename "$source" .c)
	[ "$name" != layout ] || continue
	clang-19 -target bpfel -O2 -g -Wall -Werror -mcpu=v3 -fdebug-prefix-map="$work"=. -I"$work/c/include" -c "$source" -o "$work/$name.o"
	llvm-strip-19 -g "$work/$name.o"
	gzip -9n <"$work/$name.o" >"$out/$name.o.gz"
done
