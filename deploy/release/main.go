// Command release makes and checks what goes with released binaries:
//
//	release sbom BINARY...    check the modules' least versions, write BINARY.cdx.json
//	release database URL [AGE]  check that a vulnerability database can be relied on,
//	                            older than 30 days only if AGE (such as 2400h) says so
//	release planted DIR       write a database that a working scanner finds something with
//
// make release-check uses it. It reads the build information that the Go linker
// put into a binary, so it tells what is in there and not what should be.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "release: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) < 2 {
		return errors.New("too few arguments; use: release sbom BINARY..., release database URL, or release planted DIR")
	}
	switch args[0] {
	case "sbom":
		return describeAll(args[1:], out)
	case "database":
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		limit, err := ageLimit(args[2:])
		if err != nil {
			return err
		}
		return checkDatabase(ctx, http.DefaultClient, args[1], time.Now(), limit, out)
	case "planted":
		return plantDatabase(args[1], time.Now(), out)
	}
	return fmt.Errorf("%q is not known; use sbom, database or planted", args[0])
}

// ageLimit is how old a database may be: as much as was asked for, else maxAge.
func ageLimit(args []string) (time.Duration, error) {
	if len(args) == 0 || args[0] == "" {
		return maxAge, nil
	}
	limit, err := time.ParseDuration(args[0])
	if err != nil || limit <= 0 {
		return 0, fmt.Errorf("age of the vulnerability database %q: want a duration above zero, such as 720h", args[0])
	}
	return limit, nil
}

// describeAll checks and describes every binary, and joins what is wrong.
func describeAll(binaries []string, out io.Writer) error {
	var errs []error
	for _, path := range binaries {
		n, err := describe(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("describe %s: %w", path, err))
			continue
		}
		fmt.Fprintf(out, "%s%s: %d modules, all at least of the versions required\n", path, sbomSuffix, n)
	}
	return errors.Join(errs...)
}
