// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"github.com/go-logr/logr"
	"go.uber.org/zap"
	"k8s.io/klog/v2"
)

// silenceKlog leads what client-go logs by itself into the log, at debug: what
// matters of it is reported as problems by the stores.
func silenceKlog(log *zap.Logger) {
	klog.SetLogger(logr.New(&zapSink{log: log.WithOptions(zap.AddCallerSkip(2)).Sugar()}))
}

// zapSink is a logr.LogSink that writes everything at debug.
type zapSink struct {
	log *zap.SugaredLogger
}

// Init implements logr.LogSink.
func (z *zapSink) Init(logr.RuntimeInfo) {}

// Enabled implements logr.LogSink. Levels above 2 are client-go's tracing.
func (z *zapSink) Enabled(level int) bool { return level <= 2 }

// Info implements logr.LogSink.
func (z *zapSink) Info(_ int, message string, keysAndValues ...any) {
	z.log.Debugw(message, keysAndValues...)
}

// Error implements logr.LogSink.
func (z *zapSink) Error(err error, message string, keysAndValues ...any) {
	z.log.Debugw(message, append(keysAndValues, "error", err)...)
}

// WithValues implements logr.LogSink.
func (z *zapSink) WithValues(keysAndValues ...any) logr.LogSink {
	return &zapSink{log: z.log.With(keysAndValues...)}
}

// WithName implements logr.LogSink.
func (z *zapSink) WithName(name string) logr.LogSink {
	return &zapSink{log: z.log.Named(name)}
}
