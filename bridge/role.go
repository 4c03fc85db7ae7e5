package bridge

import "fmt"

// roleAlarms tells of a reader whose users have written, seq being the last own transaction.
func (l *life) roleAlarms(seq uint64) []Alarm {
	if !l.cfg.Reader(l.cfg.Node) || seq <= l.firstOwn {
		return nil
	}
	return []Alarm{{Code: "reader-wrote", Severity: SeverityWarning,
		Text: fmt.Sprintf("%d transactions were written here since the bridge started, though this node is a reader; they are replicated as any other node's", seq-l.firstOwn),
		Mend: "find out who writes here, past the trigger that refuses it: as a superuser, or in a session whose session_replication_role is replica"}}
}
