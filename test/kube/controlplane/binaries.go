// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"os"
	"path/filepath"
)

// BinDir returns the directory that holds kube-apiserver, etcd, kubectl and
// kube-proxy: MILLRACE_KUBE_BIN, or millrace/bin in the user's cache.
func BinDir() (string, error) {
	if dir := os.Getenv("MILLRACE_KUBE_BIN"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache directory: %w", err)
	}
	return filepath.Join(cache, "millrace", "bin"), nil
}

// Binary returns the path of one of the programs in BinDir, or an error that
// says how to build it.
func Binary(name string) (string, error) {
	dir, err := BinDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%s is not built: run \"make kube-binaries\", or set MILLRACE_KUBE_BIN to a directory that has it: %w", name, err)
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s is not an executable file", path)
	}
	return path, nil
}
