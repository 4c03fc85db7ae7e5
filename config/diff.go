package config

import (
	"reflect"
	"strings"
)

// Difference is a key whose value is another one in another configuration.
type Difference struct {
	Key string
	// From and To are the values as they would be written, without secrets.
	From, To string
	// Live: a bridge that runs can take the new value over. All others are read when it starts.
	Live bool
}

// Diff lists the keys in which two loaded configurations differ, in the order of the documentation. A secret that comes from a
// file is named by the key of the file.
func Diff(from, to *Config) []Difference {
	var all []Difference
	shownFrom, shownTo := from.Redacted(), to.Redacted()
	for _, k := range keys() {
		if reflect.DeepEqual(k.field(from), k.field(to)) {
			continue
		}
		name := k.name
		if file, ok := find(k.name + "_file"); ok && file.file && *fileField(file, to) != "" {
			if *fileField(file, from) != *fileField(file, to) {
				continue // told under its own name
			}
			name = file.name
		}
		all = append(all, Difference{Key: name, From: encode(k.field(shownFrom)), To: encode(k.field(shownTo)), Live: k.live})
	}
	return all
}

// String gives the key with both values.
func (d Difference) String() string {
	dash := func(text string) string {
		if strings.TrimSpace(text) == "" {
			return "-"
		}
		return text
	}
	return d.Key + ": " + dash(d.From) + " -> " + dash(d.To)
}
