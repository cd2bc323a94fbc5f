package schema

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// checker collects what is wrong with a record that is about to be written.
type checker struct {
	key      string
	problems []error
}

// that notes a problem unless a condition holds.
func (c *checker) that(ok bool, field, value, reason string) {
	if !ok {
		c.problems = append(c.problems, newError(c.key, field, value, reason))
	}
}

// source checks what a record says about where it comes from.
func (c *checker) source(cluster, namespace, name string) {
	if err := ValidateClusterName(cluster); err != nil {
		c.problems = append(c.problems, err)
	}
	c.that(validName(namespace), "namespace", namespace, "must be a Kubernetes name")
	c.that(validName(name), "name", name, "must be a Kubernetes name")
}

func (c *checker) token(field, text string) { c.that(isToken(text), field, text, tokenReason) }

func (c *checker) texts(field string, m map[string]string) {
	for k, v := range m {
		c.that(utf8.ValidString(k), field, k, textReason)
		c.that(utf8.ValidString(v), field+"/"+k, v, textReason)
	}
}

func (c *checker) oneOf(field, value string, allowed []string) {
	c.that(slices.Contains(allowed, value), field, value, "must be one of "+strings.Join(allowed, ", "))
}
