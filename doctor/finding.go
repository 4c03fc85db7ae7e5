package doctor

import "time"

// Severity says how soon a person must look.
type Severity string

// The severities, gravest first.
const (
	Error   Severity = "error"   // it does not work, or will not, or data are at risk
	Warning Severity = "warning" // a person should know, and most often act
	Note    Severity = "note"    // how this server is; nothing has to be done
)

// Finding is one thing that a person should know.
type Finding struct {
	Code     string   `json:"code"` // kebab-case and stable
	Severity Severity `json:"severity"`
	Text     string   `json:"text"` // the thing and the fault
	Why      string   `json:"why"`  // why it matters
	Mend     string   `json:"mend"` // SQL, YAML or what else to do
}

// Guarantee is one thing that pgbridge promises, and whether it holds on this server.
type Guarantee struct {
	Name    string `json:"name"`
	Holds   bool   `json:"holds"`
	Because string `json:"because,omitempty"` // of what it is weaker, or what it rests on
}

// Skipped is a check that could not be made.
type Skipped struct {
	Check   string `json:"check"`
	Because string `json:"because"`
}

// Report is what an examination has found.
type Report struct {
	Cluster string    `json:"cluster"`
	Node    string    `json:"node"`
	At      time.Time `json:"at"`
	Server  string    `json:"server,omitempty"` // version of PostgreSQL
	Running bool      `json:"running"`          // a bridge runs here
	// Probe is what the way of a write has taken; nil if no bridge runs.
	Probe      *Probe      `json:"probe,omitempty"`
	Findings   []Finding   `json:"findings"` // gravest first
	Guarantees []Guarantee `json:"guarantees"`
	Skipped    []Skipped   `json:"skipped"`
}

// Count returns how many findings have that severity.
func (r *Report) Count(s Severity) (n int) {
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}
