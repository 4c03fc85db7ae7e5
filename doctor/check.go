package doctor

import (
	"cmp"
	"fmt"
	"slices"
)

// check is one thing that is looked at.
type check struct {
	name  string
	needs Part
	run   func(*Facts) []Finding
}

// checks are all of them. Findings of one severity come in this order.
func checks() []check {
	return []check{
		{"postgresql", "", foundByCapture},
		{"bridge", PartBridge, alarms},
		{"probe", PartBridge, probe},
		{"privileges", PartServer, privileges},
		{"table-privileges", PartServer, tablePrivileges},
		{"durability", PartServer, durability},
		{"wal-limit", PartServer, walLimit},
		{"wal-held", PartServer, walHeld},
		{"slot-timeout", PartServer, slotTimeout},
		{"sender-timeout", PartServer, senderTimeout},
		{"origins", PartServer, origins},
		{"connections", PartServer, connections},
		{"old-transactions", PartServer, oldTransactions},
		{"collation-versions", PartServer, collationVersions},
		{"encoding", PartServer, encoding},
		{"triggers", PartServer, triggers},
		{"rules", PartServer, rules},
		{"foreign-keys", PartServer, foreignKeys},
		{"database-clock", PartServer, databaseClock},
		{"sequence-exhaustion", PartTables, exhaustion},
		{"sequence-in-use", PartTables, inUse},
		{"sequence-unknown", PartTables, unseenSequences},
		{"broker", PartBroker, broker},
		{"broker-sync", "", brokerSync},
		{"broker-open", "", brokerOpen},
		{"broker-replicas", PartBroker, brokerReplicas},
		{"broker-room", PartBroker, brokerRoom},
		{"disk-room", PartDisks, diskRoom},
		{"certificates", "", certificates},
		{"nodes", PartNodes, unasked},
		{"topology", PartNodes, topologies},
		{"policies", PartNodes, policies},
		{"clocks", PartNodes, clocks},
		{"tables", PartNodes, tables},
		{"sequences", PartNodes, sequences},
		{"delivery", PartNodes, delivery},
	}
}

// Examine makes every check that can be made.
func Examine(f *Facts) *Report {
	r := &Report{Cluster: f.Config.Cluster, Node: f.Config.Node, At: f.Now, Running: f.Bridge != nil,
		Findings: []Finding{}, Guarantees: guarantees(f), Skipped: []Skipped{}}
	if f.Server != nil {
		r.Server = f.Server.VersionText
	}
	if f.Bridge != nil {
		r.Probe = f.Bridge.Probe
	}
	for _, c := range checks() {
		if why := f.Unknown[c.needs]; c.needs != "" && why != "" {
			r.Skipped = append(r.Skipped, Skipped{c.name, why})
			continue
		}
		r.Findings = append(r.Findings, c.run(f)...)
	}
	if f.Bridge != nil {
		r.Findings = withoutEchoes(r.Findings, f.Bridge.Alarms)
	}
	rank := []Severity{Error, Warning, Note}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Compare(slices.Index(rank, a.Severity), slices.Index(rank, b.Severity))
	})
	return r
}

// withoutEchoes leaves the bridge's alarms out that a check has found as well.
func withoutEchoes(found, alarms []Finding) []Finding {
	isAlarm := func(x Finding) bool {
		return slices.ContainsFunc(alarms, func(a Finding) bool { return a.Code == x.Code && a.Text == x.Text })
	}
	own := map[string]bool{}
	for _, x := range found {
		if !isAlarm(x) {
			own[x.Code] = true
		}
	}
	return slices.DeleteFunc(found, func(x Finding) bool { return own[x.Code] && isAlarm(x) })
}

// one is a list of one finding.
func one(code string, s Severity, text, why, mend string) []Finding {
	return []Finding{{code, s, text, why, mend}}
}

// size writes bytes for a person.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, i := float64(n), 0
	for value >= 1024 && i < len(units)-1 {
		value, i = value/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[i])
}
