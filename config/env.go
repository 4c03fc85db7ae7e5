package config

import (
	"regexp"
	"slices"
	"strings"
)

// foreign matches variables that begin like ours and are not: those of this project's own tests, and the
// ones that Kubernetes and Docker links set in every container for a service that is named pgbridge or
// pgbridge-something (Kubernetes documentation, "Service", environment variables).
var foreign = regexp.MustCompile(`^PGBRIDGE_(TEST_.*|PG_CACHE|(\w+_)?SERVICE_(HOST|PORT(_\w+)?)|(\w+_)?PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// unknownVariables refuses each PGBRIDGE_ variable that sets no key, naming the nearest one.
func unknownVariables(environ []string) problems {
	known := make([]string, 0, len(keys()))
	for _, k := range keys() {
		known = append(known, k.env())
	}
	environ = slices.Sorted(slices.Values(environ))
	var ps problems
	for _, assignment := range environ {
		name, _, _ := strings.Cut(assignment, "=")
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(known, name) || foreign.MatchString(name) {
			continue
		}
		ps = append(ps, Problem{Place: name, Text: "unknown variable; the nearest one is " + nearest(name, known)})
	}
	return ps
}
