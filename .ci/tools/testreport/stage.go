// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// stage is what is kept of one stage.
type stage struct {
	Name    string    `json:"name"`
	Start   time.Time `json:"start"`
	Seconds float64   `json:"seconds"`
	Passed  int       `json:"passed"`
	Failed  int       `json:"failed"`
	Skipped int       `json:"skipped"`
	// Skips tells each skipped test and why.
	Skips []note `json:"skips,omitempty"`
	// Figures are what tests measured, by the lines that they marked.
	Figures []figure `json:"figures,omitempty"`
	// Failures names what failed.
	Failures []string `json:"failures,omitempty"`
}

// note is a test and what it said.
type note struct {
	Test   string `json:"test"`
	Reason string `json:"reason"`
}

// figure is one thing that a test measured, or chose at random.
type figure struct {
	Test   string `json:"test"`
	Figure string `json:"figure"`
}

func (s *stage) keep() error {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return fmt.Errorf("keeping stage %s: %w", s.Name, err)
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("keeping stage %s: %w", s.Name, err)
	}
	if err := os.WriteFile(filepath.Join(directory, s.Name+".json"), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("keeping stage %s: %w", s.Name, err)
	}
	return nil
}

// runCheck runs a command as a stage that counts for so much if it passes, and
// for one failure if not.
func runCheck(name string, command []string, passed int) error {
	s := &stage{Name: name, Start: time.Now()}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	s.Seconds = time.Since(s.Start).Seconds()
	if err != nil {
		fmt.Printf("FAIL  %s: %v\n", name, err)
		s.Failed, s.Failures = 1, []string{fmt.Sprintf("%s: %v", name, err)}
	} else {
		s.Passed = passed
	}
	if kept := s.keep(); kept != nil {
		return kept
	}
	if err != nil {
		return errFailed
	}
	return nil
}
