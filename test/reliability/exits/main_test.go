// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"os"
	"testing"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability/syscalls"
	"github.com/millrace-project/millrace/test/testbed"
)

// binaries are built once for all tests.
var binaries testbed.Binaries

func TestMain(m *testing.M) {
	syscalls.Launch()
	os.Exit(harness.Main(m, &binaries))
}
