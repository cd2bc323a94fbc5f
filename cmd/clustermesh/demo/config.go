package demo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/clustermesh/clustermesh/deploy/examples"
)

// Config says what to run and where to show it.
type Config struct {
	// Self is the clustermesh executable, which serves as backend and client.
	Self string
	// BinDir holds clustermesh-apiserver and clustermesh-agent. When empty they
	// are looked for beside Self and then on PATH.
	BinDir string
	// Examples holds one directory of manifests per cluster, east and west. The
	// built-in ones are used when nil.
	Examples fs.FS
	// Out receives the story as text.
	Out io.Writer
	// Pause keeps the mesh up at the end until the context is cancelled.
	Pause bool
	// StepTimeout bounds every wait; 30 s when zero.
	StepTimeout time.Duration
}

// Report is what the demo measured, for programs.
type Report struct {
	Steps   []Step  `json:"steps"`
	Seconds float64 `json:"seconds"`
}

// Step is one series of requests.
type Step struct {
	Name    string         `json:"name"`
	Client  string         `json:"client"` // the cluster of the client
	Answers map[string]int `json:"answers"`
	Failed  int            `json:"failed"`
}

// Validate returns all problems of c in one error.
func (c Config) Validate() error {
	var errs []error
	if c.Self == "" {
		errs = append(errs, errors.New("the path of the clustermesh executable is not set"))
	}
	if c.StepTimeout < 0 {
		errs = append(errs, fmt.Errorf("step timeout %s is negative", c.StepTimeout))
	}
	return errors.Join(errs...)
}

func (c Config) examples() fs.FS {
	if c.Examples == nil {
		return examples.FS()
	}
	return c.Examples
}

func (c Config) timeout() time.Duration {
	if c.StepTimeout == 0 {
		return 30 * time.Second
	}
	return c.StepTimeout
}

// MissingError lists what the machine lacks.
type MissingError []string

// Error has one line per thing that is missing.
func (m MissingError) Error() string {
	text := "this machine cannot run the demo:"
	for _, line := range m {
		text += "\n- " + line
	}
	return text
}
