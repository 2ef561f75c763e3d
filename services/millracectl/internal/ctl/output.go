// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// outputFormat is the value of --output.
type outputFormat string

const (
	formatTable outputFormat = "table"
	formatWide  outputFormat = "wide"
	formatJSON  outputFormat = "json"
	formatYAML  outputFormat = "yaml"

	allowedFormats = "table, wide, json or yaml"
)

// String implements pflag.Value.
func (f *outputFormat) String() string { return string(*f) }

// Type implements pflag.Value; it names the value in help texts.
func (f *outputFormat) Type() string { return "format" }

// Set implements pflag.Value.
func (f *outputFormat) Set(s string) error {
	switch format := outputFormat(s); format {
	case formatTable, formatWide, formatJSON, formatYAML:
		*f = format
		return nil
	default:
		return fmt.Errorf("allowed are %s", allowedFormats)
	}
}

// forProgram says that the format is read by a program, so that messages are
// printed whole and in protobuf's JSON mapping.
func (f outputFormat) forProgram() bool { return f == formatJSON || f == formatYAML }

func (f outputFormat) wide() bool { return f == formatWide }

// document encodes a message with every field it has, defaults included, so
// that a program need not know which are left out.
func document(m proto.Message) (json.RawMessage, error) {
	raw, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return raw, nil
}

// printMessage prints one message for programs.
func (a *App) printMessage(m proto.Message) error {
	doc, err := document(m)
	if err != nil {
		return err
	}
	return a.printDocument(doc)
}

// printDocument prints JSON in the chosen format. protojson varies its
// spacing on purpose, so the text is always laid out anew.
func (a *App) printDocument(doc json.RawMessage) error {
	var out bytes.Buffer
	if a.output == formatYAML {
		text, err := yaml.JSONToYAML(doc)
		if err != nil {
			return fmt.Errorf("turning JSON into YAML: %w", err)
		}
		out.Write(text)
	} else {
		if err := json.Indent(&out, doc, "", "  "); err != nil {
			return fmt.Errorf("laying out JSON: %w", err)
		}
		out.WriteByte('\n')
	}
	return write(a.Stdout, out.Bytes())
}

// printList prints the messages of a stream as one list for programs.
func printList[M proto.Message](a *App, messages []M) error {
	docs := make([]json.RawMessage, 0, len(messages))
	for _, m := range messages {
		doc, err := document(m)
		if err != nil {
			return err
		}
		docs = append(docs, doc)
	}
	list, err := json.Marshal(docs)
	if err != nil {
		return fmt.Errorf("encoding a list: %w", err)
	}
	return a.printDocument(list)
}

// table collects rows and prints them in columns as wide as their widest cell.
type table struct {
	header []string
	rows   [][]string
}

// table returns a table with more columns in the wide format.
func (a *App) table(header []string, wide ...string) *table {
	if a.output.wide() {
		header = append(header, wide...)
	}
	return &table{header: header}
}

// row adds a row. Cells of columns that the table has in the wide format only
// come last, and are left out in others.
func (t *table) row(cells ...string) {
	if n := len(t.header); n > 0 && len(cells) > n {
		cells = cells[:n]
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer) error {
	var out bytes.Buffer
	tw := tabwriter.NewWriter(&out, 0, 0, 3, ' ', 0)
	for _, cells := range append([][]string{t.header}, t.rows...) {
		for i, cell := range cells {
			cells[i] = orNone(cell)
		}
		// No tab ends the line: the last column is not padded.
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("laying out a table: %w", err)
	}
	return write(w, out.Bytes())
}

// orNone makes an empty cell visible, so that columns can be counted.
func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func write(w io.Writer, text []byte) error {
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	return nil
}

// printTable prints a table, or a remark on stderr if it has no rows.
func (a *App) printTable(t *table, what string) error {
	if len(t.rows) == 0 {
		fmt.Fprintf(a.Stderr, "no %s\n", what)
		return nil
	}
	return t.print(a.Stdout)
}
