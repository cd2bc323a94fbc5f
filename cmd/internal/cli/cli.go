// Package cli is what the daemons' commands share: flags that are also
// environment variables and members of a YAML file, every problem of them
// reported at once, an orderly end on SIGTERM, and exit codes.
//
// A flag --cluster-name is also CLUSTERMESH_CLUSTER_NAME and the member
// cluster-name of the file given with --config. The command line wins over the
// environment, the environment over the file.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// Exit codes of a daemon.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// EnvPrefix begins the name of every environment variable that sets a flag.
const EnvPrefix = "CLUSTERMESH"

// usageError marks an error of flags, environment or file.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usage marks err as a mistake of whoever started the program: it ends with
// [ExitUsage]. nil stays nil.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

// Settle brings the values of environment and configuration file into the
// flags that the command line left alone. It returns every problem at once:
// unknown members of the file, and values that do not fit their flag.
func Settle(flags *pflag.FlagSet) error {
	v := viper.New()
	v.SetEnvPrefix(EnvPrefix)
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	var problems []error
	if path := configPath(flags, v); path != "" {
		members, err := readConfig(path)
		problems = badMembers(flags, members, path)
		if err == nil {
			err = v.MergeConfigMap(members) // with members in lower case from here on
		}
		if err != nil {
			return Usage(fmt.Errorf("--config %q: %w; give a readable YAML file", path, err))
		}
	}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || !v.IsSet(f.Name) {
			return
		}
		if err := assign(f, v.Get(f.Name)); err != nil {
			problems = append(problems, fmt.Errorf("%s %q: not a %s; correct the environment variable %s or the member %q of the configuration file",
				f.Name, fmt.Sprint(v.Get(f.Name)), f.Value.Type(), variable(f.Name), f.Name))
		}
	})
	return Usage(errors.Join(problems...))
}

// assign gives a flag a value of the environment or the file. Only a flag that
// may be repeated takes a list, and no flag takes a mapping: what a flag cannot
// hold must not count as nothing.
func assign(f *pflag.Flag, value any) error {
	switch list := value.(type) {
	case map[string]any, nil:
		return errNoValue
	case []any:
		slice, ok := strict(f.Value).(pflag.SliceValue)
		if !ok {
			return errNoValue
		}
		texts := make([]string, len(list))
		for i, item := range list {
			switch item.(type) {
			case map[string]any, []any, nil:
				return errNoValue
			}
			texts[i] = fmt.Sprint(item)
		}
		return slice.Replace(texts)
	}
	return strict(f.Value).Set(fmt.Sprint(value))
}

// errNoValue is what a flag cannot hold.
var errNoValue = errors.New("neither one value nor a list of values for a flag that may be repeated")

func configPath(flags *pflag.FlagSet, v *viper.Viper) string {
	f := flags.Lookup("config")
	if f == nil {
		return ""
	}
	if f.Changed {
		return f.Value.String()
	}
	return v.GetString("config")
}

// maxConfigBytes bounds the file of --config.
const maxConfigBytes = 1 << 20

// readConfig reads the members of a configuration file, none from an empty one.
func readConfig(path string) (map[string]any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxConfigBytes {
		return nil, fmt.Errorf("larger than %d bytes; it holds values of flags only", maxConfigBytes)
	}
	doc, err := yamlfile.Parse(raw)
	if errors.Is(err, yamlfile.ErrEmpty) {
		return nil, nil
	}
	var members map[string]any
	if err == nil {
		err = doc.Decode(&members)
	}
	return members, err
}

// badMembers refuses members that are no flags, those without a value, which would
// count as not there, and those that differ in upper and lower case only, which
// are one to viper.
func badMembers(flags *pflag.FlagSet, members map[string]any, path string) (problems []error) {
	seen := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(members)) {
		if members[key] == nil {
			problems = append(problems, fmt.Errorf("--config %q: member %q has no value; write one, or remove the member", path, key))
		}
		if first, twice := seen[strings.ToLower(key)]; twice {
			problems = append(problems, fmt.Errorf("--config %q: members %q and %q are the same; remove one of them", path, first, key))
		}
		seen[strings.ToLower(key)] = key
		if flags.Lookup(strings.ToLower(key)) == nil {
			problems = append(problems, fmt.Errorf("--config %q: member %q is not known; see --help for the names of flags, which are the members' names", path, key))
		}
	}
	return problems
}

// Prepare adds --config to a command and settles its flags before it runs.
// Problems of flag values, environment and file are reported together with what
// the checks find, so that one try shows everything there is to mend.
func Prepare(c *cobra.Command, checks ...func() error) *cobra.Command {
	c.SilenceErrors, c.SilenceUsage = true, true
	c.Flags().SortFlags = false
	Group(c.Flags(), generalFlags, func(f *pflag.FlagSet) {
		f.String("config", "", "YAML file with flags as members; flags and environment win over it")
	})
	c.SetUsageFunc(usage)
	c.Args = cobra.NoArgs
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		errs := []error{misfits(c.Flags()), Settle(c.Flags())}
		for _, check := range checks {
			errs = append(errs, check())
		}
		if err := errors.Join(errs...); err != nil {
			return Usage(err)
		}
		return run(c, args)
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return Usage(err) })
	return c
}

// lenient is a flag's value that takes a text which does not fit, and remembers
// it, instead of ending the parsing of the command line at once.
type lenient struct {
	pflag.Value
	misfit error
}

// Set sets the value, or remembers why it cannot.
func (l *lenient) Set(text string) error {
	if l.Value.Set(text) != nil {
		l.misfit = fmt.Errorf("%q: not a %s", text, l.Type())
	}
	return nil
}

// strict is the value behind a lenient one.
func strict(v pflag.Value) pflag.Value {
	if l, ok := v.(*lenient); ok {
		return l.Value
	}
	return v
}

// forgive makes all flags of a command lenient.
func forgive(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if _, done := f.Value.(*lenient); !done {
			f.Value = &lenient{Value: f.Value}
			if f.DefValue == "[]" {
				f.DefValue = "" // help knows that of a list alone to be no default
			}
		}
	})
}

// misfits are the values given on the command line that do not fit their flag.
func misfits(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if l, ok := f.Value.(*lenient); ok && l.misfit != nil {
			errs = append(errs, fmt.Errorf("--%s %w; see --help", f.Name, l.misfit))
		}
	})
	return errors.Join(errs...)
}

// Main runs a command until it ends or the process is told to, and returns the
// exit code. Errors go to stderr.
func Main(c *cobra.Command, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	forgive(c.Flags())
	for _, sub := range c.Commands() {
		forgive(sub.Flags())
	}
	c.SetArgs(args)
	c.SetOut(stdout)
	c.SetErr(stderr)
	c.SetContext(ctx)
	_, err := Execute(c)
	switch {
	case err == nil:
		return ExitOK
	case IsUsage(err) || strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintf(stderr, "%s: wrong usage:\n  %s\nSee '%s --help'.\n", c.Name(), strings.ReplaceAll(err.Error(), "\n", "\n  "), c.Name())
		return ExitUsage
	default:
		fmt.Fprintf(stderr, "%s: %s\n", c.Name(), err)
		return ExitFailed
	}
}

// LogFlags are the flags of a daemon's log.
type LogFlags struct{ Level, Format string }

// Add adds --log-level and --log-format.
func (l *LogFlags) Add(flags *pflag.FlagSet) {
	Group(flags, generalFlags, func(f *pflag.FlagSet) {
		f.StringVar(&l.Level, "log-level", "info", "least level that is logged: debug, info, warn or error")
		f.StringVar(&l.Format, "log-format", "text", "format of the log: text or json")
	})
}

// Logger makes the logger that the flags describe.
func (l *LogFlags) Logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: not known; use debug, info, warn or error", l.Level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch l.Format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("--log-format %q: not known; use text or json", l.Format)
}
