-- What a subscription's bills come to at least and at most, in place of what its plan says.

alter table subscriptions add column commitments jsonb not null default '[]';
alter table subscription_history add column commitments jsonb not null default '[]';
