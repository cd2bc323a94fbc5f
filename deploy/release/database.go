package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxAge is how old a vulnerability database may be unless the caller knows
// better: Go's own changes every few days.
const maxAge = 30 * 24 * time.Hour

// maxIndex bounds a file of the database's index; that of modules has 200 kB.
const maxIndex = 64 << 20

const databaseRemedy = "set GOVULNDB to https://vuln.go.dev or to file:///DIR with the content of https://vuln.go.dev/vulndb.zip, unpacked"

// checkDatabase checks that govulncheck will find a database at the URL, in Go's
// format (https://go.dev/doc/security/vuln/database), that is not empty and not
// older than limit. govulncheck itself takes a directory without an index for one without
// vulnerabilities.
func checkDatabase(ctx context.Context, client *http.Client, url string, now time.Time, limit time.Duration, out io.Writer) error {
	var about struct{ Modified time.Time }
	var modules []struct{ Path string }
	err := errors.Join(readIndex(ctx, client, url, "db.json", &about), readIndex(ctx, client, url, "modules.json", &modules))
	switch age := now.Sub(about.Modified); {
	case err != nil:
		return fmt.Errorf("vulnerability database: %w; %s", err, databaseRemedy)
	case len(modules) == 0:
		return fmt.Errorf("vulnerability database %s names no module, so nothing would be found; %s", url, databaseRemedy)
	case age > limit:
		return fmt.Errorf("vulnerability database %s is of %s, %d days old, at most %d are accepted; %s",
			url, about.Modified.Format(time.DateOnly), age/(24*time.Hour), limit/(24*time.Hour), databaseRemedy)
	}
	fmt.Fprintf(out, "vulnerability database %s of %s: %d modules\n", url, about.Modified.Format(time.DateOnly), len(modules))
	return nil
}

func readIndex(ctx context.Context, client *http.Client, url, name string, into any) error {
	r, err := openIndex(ctx, client, url, name)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // nothing was written
	if err := json.NewDecoder(io.LimitReader(r, maxIndex)).Decode(into); err != nil {
		return fmt.Errorf("read index/%s of %s: %w", name, url, err)
	}
	return nil
}

func openIndex(ctx context.Context, client *http.Client, url, name string) (io.ReadCloser, error) {
	if dir, ok := strings.CutPrefix(url, "file://"); ok {
		return os.Open(filepath.Join(dir, "index", name))
	}
	if !strings.HasPrefix(url, "https://") {
		return nil, fmt.Errorf("%q: neither https:// nor file://", url)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/index/"+name, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close() //nolint:errcheck // nothing was written
		return nil, fmt.Errorf("get index/%s of %s: %s", name, url, resp.Status)
	}
	return resp.Body, nil
}
