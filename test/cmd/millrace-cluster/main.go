// SPDX-License-Identifier: Apache-2.0

// Command millrace-cluster starts and removes a real Kubernetes cluster on this
// machine, as `make cluster` and `make cluster-down` do. It is also what the
// cluster's processes are started by. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/millrace-project/millrace/test/cluster"
	"github.com/millrace-project/millrace/test/cluster/node"
	"github.com/millrace-project/millrace/test/testbed"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "millrace-cluster:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "up":
			return up(args[1:])
		case "down":
			return down(args[1:])
		case "exec":
			return execute(args[1:])
		case cluster.JoinCommand:
			return join(args[1:])
		case cluster.NodeCommand:
			return node.Run(args[1])
		case node.InitCommand:
			return node.Init(args[1])
		case cluster.RelayCommand:
			return relay(args[1], args[2], args[3])
		}
	}
	return errors.New("usage: millrace-cluster up [flags] | down [--name NAME] | exec [--name NAME] NODE COMMAND [ARGUMENT]")
}

func up(args []string) error {
	opts := cluster.Options{Progress: os.Stdout}
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.StringVar(&opts.Name, "name", "", "name that tells clusters of this machine apart")
	flags.IntVar(&opts.Nodes, "nodes", 3, "number of nodes, 1 to 9")
	family := flags.String("family", "ipv4", "ipv4, ipv6 or dual")
	flags.StringVar(&opts.CNI, "cni", "ptp", "ptp or bridge")
	flags.StringVar(&opts.Proxy, "proxy", "millrace", "millrace, or kube-proxy's mode nftables or iptables")
	timeout := flags.Duration("timeout", 10*time.Minute, "how long to wait for all")
	if err := flags.Parse(args); err != nil {
		return err
	}
	opts.Family = cluster.Family(*family)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	c, err := cluster.Start(ctx, opts)
	if err != nil {
		return err
	}
	fmt.Print(c.Hints())
	return nil
}

func down(args []string) error {
	flags := flag.NewFlagSet("down", flag.ContinueOnError)
	name := flags.String("name", "", "name of the cluster")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return cluster.Remove(ctx, *name)
}

// execute runs a command on a node.
func execute(args []string) error {
	flags := flag.NewFlagSet("exec", flag.ContinueOnError)
	name := flags.String("name", "", "name of the cluster")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() < 2 {
		return errors.New("usage: millrace-cluster exec [--name NAME] NODE COMMAND [ARGUMENT]")
	}
	c, err := cluster.Attach(*name)
	if err != nil {
		return err
	}
	for _, n := range c.Nodes() {
		if n.Name != flags.Arg(0) {
			continue
		}
		cmd, err := n.Command(context.Background(), flags.Args()[1:]...)
		if err != nil {
			return err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}
	return fmt.Errorf("the cluster has no node %s", flags.Arg(0))
}

// join becomes a program inside a cgroup and a network namespace.
func join(args []string) error {
	if len(args) < 3 {
		return errors.New("usage: millrace-cluster join CGROUP NETNS PROGRAM [ARGUMENT]")
	}
	if err := node.Join(args[0], args[1]); err != nil {
		return err
	}
	program, err := exec.LookPath(args[2])
	if err != nil {
		return err
	}
	return fmt.Errorf("starting %s: %w", program, syscall.Exec(program, args[2:], os.Environ()))
}

// relay accepts connections on the machine and carries them into a network
// namespace.
func relay(listen, netns, target string) error {
	if !strings.HasPrefix(listen, "127.0.0.1:") {
		return fmt.Errorf("relaying from %s: only from loopback", listen)
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		down, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer down.Close()
			var up net.Conn
			err := testbed.InNetNS(netns, func() (err error) {
				up, err = net.Dial("tcp", target)
				return err
			})
			if err != nil {
				fmt.Fprintln(os.Stderr, "relay:", err)
				return
			}
			defer up.Close()
			go func() {
				io.Copy(up, down) // either end may go at any time
				up.Close()
			}()
			io.Copy(down, up)
		}()
	}
}
