// The image builder and the init container's program, which use nothing but
// the standard library. A module of its own, outside go.work: nothing of
// Millrace depends on it.
module github.com/millrace-project/millrace/deploy/image

go 1.26.0
