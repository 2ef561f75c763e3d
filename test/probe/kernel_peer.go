// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelPeer tells what a socket is connected to as the kernel knows it, where
// getpeername tells what was dialled: for the description of failures.
func kernelPeer(fd int, network string) string {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err.Error()
	}
	inode := strconv.FormatUint(stat.Ino, 10)
	for _, family := range []string{"", "6"} {
		table, err := os.Open("/proc/net/" + network + family)
		if err != nil {
			return err.Error()
		}
		lines := bufio.NewScanner(table)
		for lines.Scan() {
			if fields := strings.Fields(lines.Text()); len(fields) > 9 && fields[9] == inode {
				table.Close()
				return parseKernelAddress(fields[2])
			}
		}
		table.Close()
	}
	return "nothing"
}

// parseKernelAddress reads an address of /proc/net: words of four bytes in the
// machine's order, and a port.
func parseKernelAddress(text string) string {
	words, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(words)
	number, errPort := strconv.ParseUint(port, 16, 16)
	if err != nil || errPort != nil || len(raw)%4 != 0 {
		return text
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	address, ok := netip.AddrFromSlice(raw)
	if !ok {
		return text
	}
	return fmt.Sprint(netip.AddrPortFrom(address, uint16(number)))
}
