package config

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestMain takes our own variables out of the environment, so that a developer's settings decide nothing.
func TestMain(m *testing.M) {
	for _, assignment := range os.Environ() {
		if name, _, _ := strings.Cut(assignment, "="); strings.HasPrefix(name, envPrefix) {
			os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

func TestKeyTable(t *testing.T) {
	envs := map[string]string{}
	for _, k := range keys() {
		if other, twice := envs[k.env()]; twice {
			t.Errorf("%s and %s share the variable %s", k.name, other, k.env())
		}
		envs[k.env()] = k.name
		if foreign.MatchString(k.env()) {
			t.Errorf("%s: its variable %s is taken for a foreign one", k.name, k.env())
		}
		if k.why == "" || strings.Contains(k.why, "\n") || !strings.HasSuffix(k.why, ".") {
			t.Errorf("%s: why must be one line that ends in a full stop: %q", k.name, k.why)
		}
		for _, text := range []string{k.initial, k.least, k.most, k.sample} {
			if text == "" {
				continue
			}
			if err := decodeText(k.field(new(Config)), text); err != nil {
				t.Errorf("%s: %v", k.name, err)
			}
		}
		if k.allowed != nil && !slices.Contains(k.allowed, k.initial) {
			t.Errorf("%s: default %q is not allowed", k.name, k.initial)
		}
		if direct := strings.TrimSuffix(k.name, "_file"); k.file && !slices.Contains(names(), direct) {
			t.Errorf("%s: there is no %s", k.name, direct)
		}
		if isGroup(k.name) {
			t.Errorf("%s is a key and a group", k.name)
		}
	}
}

// TestEveryFieldHasItsKey holds the table to the struct: each leaf is set by exactly one key.
func TestEveryFieldHasItsKey(t *testing.T) {
	cfg := new(Config)
	set := map[any]string{}
	for _, k := range keys() {
		if other, twice := set[k.field(cfg)]; twice {
			t.Errorf("%s and %s set the same field", k.name, other)
		}
		set[k.field(cfg)] = k.name
	}
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		for i := range v.NumField() {
			name := path + "." + v.Type().Field(i).Name
			if field := v.Field(i); field.Kind() == reflect.Struct {
				walk(name, field)
			} else if set[field.Addr().Interface()] == "" {
				t.Errorf("no key sets %s", name)
			}
		}
	}
	walk("Config", reflect.ValueOf(cfg).Elem())
}
