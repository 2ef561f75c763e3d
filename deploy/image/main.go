// SPDX-License-Identifier: Apache-2.0

// Command image writes an OCI image archive of static programs, on an empty
// base unless --base names an archive of a root filesystem. It needs no container engine, and the same input gives the same bytes.
//
//	image --name millrace-agent:v1 --out build/images/millrace-agent.tar bin/millrace-agent bin/millracectl
//
// The first program is the entry point; all stand in the image's root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "image:", err)
	os.Exit(1)
}

// labels collects repeated --label NAME=VALUE.
type labels map[string]string

func (l labels) String() string { return "" }

func (l labels) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("allowed is NAME=VALUE")
	}
	l[name] = value
	return nil
}

// list collects a flag that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, " ") }

func (l *list) Set(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	*l = append(*l, s)
	return nil
}

func run(args []string, stdout io.Writer) error {
	img := image{Labels: labels{}}
	var out string
	var created int64
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.Var(&img.Names, "name", "name and tag of the image; may be repeated")
	flags.StringVar(&out, "out", "", "archive to write")
	flags.StringVar(&img.Architecture, "arch", runtime.GOARCH, "architecture of the programs, amd64 or arm64")
	flags.StringVar(&img.User, "user", "65532:65532", "user and group that the entry point runs as")
	flags.Int64Var(&created, "created", 0, "time of creation in seconds since 1970, also of every file")
	flags.StringVar(&img.Base, "base", "", "archive of a root filesystem that the programs are added to, instead of an empty one")
	flags.Var(&img.Arguments, "argument", "argument that the entry point is started with unless a pod gives others; may be repeated")
	flags.Var(labels(img.Labels), "label", "label of the image, NAME=VALUE; may be repeated")
	if err := flags.Parse(args); err != nil {
		return err
	}
	img.Programs = flags.Args()
	img.Created = time.Unix(created, 0).UTC()
	if len(img.Names) == 0 || out == "" || len(img.Programs) == 0 {
		return errors.New("--name, --out and at least one program are needed")
	}
	digest, err := img.writeFile(out)
	if err != nil {
		return fmt.Errorf("writing image %s: %w", img.Names[0], err)
	}
	fmt.Fprintf(stdout, "%s  %s  %s\n", out, img.Names.String(), digest)
	return nil
}
