// SPDX-License-Identifier: Apache-2.0

// Command image writes an OCI image archive of static programs on an empty
// base. It needs no container engine, and the same input gives the same bytes.
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

func run(args []string, stdout io.Writer) error {
	img := image{Labels: labels{}}
	var out string
	var created int64
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&img.Name, "name", "", "name and tag of the image")
	flags.StringVar(&out, "out", "", "archive to write")
	flags.StringVar(&img.Architecture, "arch", runtime.GOARCH, "architecture of the programs, amd64 or arm64")
	flags.StringVar(&img.User, "user", "65532:65532", "user and group that the entry point runs as")
	flags.Int64Var(&created, "created", 0, "time of creation in seconds since 1970, also of every file")
	flags.Var(labels(img.Labels), "label", "label of the image, NAME=VALUE; may be repeated")
	if err := flags.Parse(args); err != nil {
		return err
	}
	img.Programs = flags.Args()
	img.Created = time.Unix(created, 0).UTC()
	if img.Name == "" || out == "" || len(img.Programs) == 0 {
		return errors.New("--name, --out and at least one program are needed")
	}
	digest, err := img.writeFile(out)
	if err != nil {
		return fmt.Errorf("writing image %s: %w", img.Name, err)
	}
	fmt.Fprintf(stdout, "%s  %s  %s\n", out, img.Name, digest)
	return nil
}
