# The second database server: a copy of the first one that follows its log.
set -eu
cd /etc/postgresql/15/main
echo "listen_addresses = '*'" > conf.d/shop.conf
echo 'host all,replication all samenet trust' >> pg_hba.conf
data=/var/lib/postgresql/15/main
rm -rf "$data"
su postgres -c "pg_basebackup -h db -U shop -R -D $data -d 'application_name=replica' --checkpoint=fast"
systemctl enable --now postgresql
psql -h db -U shop -c "ALTER SYSTEM SET synchronous_standby_names = 'replica'" -c 'SELECT pg_reload_conf()' shop
