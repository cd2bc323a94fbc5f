package demo

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

func TestGetReportsAnswersAndFailures(t *testing.T) {
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n++; n == 2 {
			http.Error(w, "broken", http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("west pod-1\n"))
	}))
	defer srv.Close()
	var out bytes.Buffer
	if err := Get(t.Context(), &out, srv.URL, 3); err != nil {
		t.Fatal(err)
	}
	want := "{\"body\":\"west pod-1\\n\"}\n{\"body\":\"broken\\n\",\"err\":\"503 Service Unavailable\"}\n{\"body\":\"west pod-1\\n\"}\n"
	if out.String() != want {
		t.Errorf("output\n%swant\n%s", out.String(), want)
	}
}

func TestBackendEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Backend(ctx, "127.0.0.1:0", "x") }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("backend ended with %v", err)
	}
	if err := Backend(t.Context(), "192.0.2.1:1", "x"); err == nil {
		t.Error("listened on a foreign address")
	}
}

func TestValidateReportsAllProblems(t *testing.T) {
	err := Config{StepTimeout: -1}.Validate()
	for _, want := range []string{"executable", "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
	if _, err := Run(t.Context(), Config{}); err == nil {
		t.Error("ran without configuration")
	}
}

func TestMissingErrorListsEverything(t *testing.T) {
	var err error = MissingError{"a", "b"}
	var missing MissingError
	if !errors.As(err, &missing) || !reflect.DeepEqual([]string(missing), []string{"a", "b"}) || strings.Count(err.Error(), "\n- ") != 2 {
		t.Errorf("%q", err)
	}
}
