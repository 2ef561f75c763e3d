// SPDX-License-Identifier: Apache-2.0

package bpf

//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" sockConnect c/sock_connect.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" sockSendmsg c/sock_sendmsg.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" sockRecvmsg c/sock_recvmsg.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" sockGetpeername c/sock_getpeername.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" sockRelease c/sock_release.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" tcPodIngress c/tc_pod_ingress.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" tcPodEgress c/tc_pod_egress.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" tcUplinkIngress c/tc_uplink_ingress.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" tcUplinkEgress c/tc_uplink_egress.c -- -Ic/include
//go:generate bpf2go -go-package bpf -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" conntrackMove c/conntrack_move.c -- -Ic/include
//go:generate clang-19 -target bpfel -O2 -g -Wall -Werror -mcpu=v3 -Ic/include -c c/layout.c -o layout/testdata/types.o
//go:generate llvm-strip-19 -g layout/testdata/types.o
//go:generate sh testdata/otherlayout.sh
