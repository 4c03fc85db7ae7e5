package apply

import "time"

// Limits are those options that may change while an Applier runs. They mean what they mean in Options, but that zero is no default.
type Limits struct {
	Rate              int64         // 0 is no bound
	YieldAt           int           // 0 is never
	ConflictRetention time.Duration // 0 or less: for ever
	ConflictRows      int           // 0 or less: all
}

// SetLimits has the Applier go on with other limits. Who waits for the old rate waits no longer than the new one asks.
func (a *Applier) SetLimits(l Limits) {
	a.limits.Store(&l)
	a.pace.set(l.Rate, time.Now())
	a.yields.set(l.YieldAt)
}
